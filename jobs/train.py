"""Trains the private model of a recipe.

ray job submit --working-dir . -- python jobs/train.py --recipe mnist --out s3://bucket/runs/mnist
"""

from rapid_dist.cli.main import run_command

if __name__ == "__main__":
    run_command("train")
