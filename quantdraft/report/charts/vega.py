"""A program that draws charts for `renderer`: one line of JSON in, one line of JSON out.

It runs in a process of its own because the library's JavaScript engine aborts the process where
memory ends or may not be reserved. It imports nothing of this package.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Answer each request on stdin until it ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)  # nothing that a library prints gets among the replies
        for line in sys.stdin:
            replies.write(json.dumps(_answer(json.loads(line))) + "\n")
            replies.flush()


def _answer(request: dict[str, str]) -> dict[str, str]:
    """Return the SVG of a specification, or a bundle of scripts; or the error in words."""
    try:
        import vl_convert

        if "spec" in request:
            drawn = vl_convert.vegalite_to_svg(request["spec"], vl_version=request["version"])
        else:
            drawn = vl_convert.javascript_bundle(request["snippet"], request["version"])
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"drawn": str(drawn)}


if __name__ == "__main__":
    main()
