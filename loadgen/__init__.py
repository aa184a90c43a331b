"""Load generator: real, binned workloads replayed with Locust."""
