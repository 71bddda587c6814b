"""The Ray Serve application: gateway, pools, router, autoscaling, and the front that clients reach."""
