"""The only folder that knows Ray, gRPC and HTTP."""
