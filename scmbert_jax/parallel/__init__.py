"""Device meshes, the one table of sharding rules, and multi-host runs."""
