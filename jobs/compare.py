"""Sets methods side by side at the same budgets; an internal result.

ray job submit --working-dir . -- python jobs/compare.py --recipe mnist --out s3://bucket/compare
"""

from rapid_dist.cli.main import run_command

if __name__ == "__main__":
    run_command("compare")
