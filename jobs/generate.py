"""Writes the bundle of a recipe's model and draws samples.

ray job submit --working-dir . -- python jobs/generate.py --recipe mnist --out s3://bucket/runs/mnist
"""

from rapid_dist.cli.main import run_command

if __name__ == "__main__":
    run_command("generate")
