"""Where many runs are done: on this machine, on a Ray cluster, by Slurm."""
