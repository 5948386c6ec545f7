"""Releases a finished run: gate, signed bundle, registry; or every reason for refusal.

ray job submit --working-dir . -- python jobs/release.py --recipe config.yaml \
    --out s3://bucket/runs/mnist --key /secrets/release-key.pem --signer "A. Officer"
"""

from rapid_dist.cli.main import run_command

if __name__ == "__main__":
    run_command("release")
