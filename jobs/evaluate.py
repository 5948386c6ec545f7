"""Measures the samples of a recipe against private records (internal).

ray job submit --working-dir . -- python jobs/evaluate.py --recipe mnist --out s3://bucket/runs/mnist
"""

from rapid_dist.cli.main import run_command

if __name__ == "__main__":
    run_command("evaluate")
