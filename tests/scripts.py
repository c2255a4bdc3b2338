"""Scripts for processes of their own, where a test forks, ends or signals what should not be the tests' process."""

import os
import subprocess
import sys

PATIENCE = 120  # seconds after which a test no longer waits for what should take a few


def run_script(script: str, *arguments: str, status: int = 0, **environment: str) -> str:
    """Run Python, require its exit status, and return what it has printed."""
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=env)
    assert done.returncode == status, done.stderr
    return done.stdout


# Ends while daemon threads are inside `call`, which a script defines before.
ENDS = """
import sys, threading, time

def work():
    while True:
        call()

call()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("done", flush=True)
sys.exit(3)
"""
