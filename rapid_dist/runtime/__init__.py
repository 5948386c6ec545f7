"""The only room that imports ray: cluster, pools, train workers, tracking."""
