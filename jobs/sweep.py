"""Tries many settings of a recipe at one epsilon and chooses one.

ray job submit --working-dir . -- python jobs/sweep.py --recipe mnist --out s3://bucket/runs/sweep
"""

from rapid_dist.cli.main import run_command

if __name__ == "__main__":
    run_command("sweep")
