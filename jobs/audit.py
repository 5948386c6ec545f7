"""Tries the installed code of a recipe, on the machine that will train.

ray job submit --working-dir . -- python jobs/audit.py --recipe mnist --out s3://bucket/runs/mnist
"""

from rapid_dist.cli.main import run_command

if __name__ == "__main__":
    run_command("audit")
