"""What a design would do before anyone builds it: workloads, their simulation, and what the results would cost."""
