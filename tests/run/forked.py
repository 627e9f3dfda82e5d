"""Runs commands in forks of one warm process, and kills them: a second each instead of ten.

Standard input: a line of JSON for each command, {"words": [...], "kill_after": seconds or null,
"kill_at": files that all exist then, or null}.
Standard output: a line of JSON each, {"code": exit code or null if killed, "err": its last words}.
"""

import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path


def run(words: list[str], kill_after: float | None, kill_at: list[str] | None) -> dict[str, object]:
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            faulthandler.dump_traceback_later(60, exit=True)  # say where, rather than hang
            os._exit(code_of(words))
        deadline = None if kill_after is None else time.monotonic() + kill_after
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            late = deadline is not None and time.monotonic() > deadline
            if late or (kill_at and all(Path(path).exists() for path in kill_at)):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                code = None
                break
            time.sleep(0.002)
        said.seek(0)
        return {"code": code, "err": said.read()[-3000:]}


def code_of(words: list[str]) -> int:
    from lifelong.cli import train

    sys.argv = ["lifelong-train", *words]
    try:
        train.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except BaseException as error:  # what a test must see, whatever it is
        print(repr(error), flush=True)
        return 99
    return 0


def main() -> None:
    import lifelong.report.forgotten  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
