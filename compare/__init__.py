"""The comparison of systems before anyone builds them: simulation, costs, published measurements and the report."""
