"""The ranks of one pod: ``python -m components.runtime.launcher.group`` is PyTorch's launcher, torchrun, with its
arguments.

torchrun ends with 1 whatever its ranks ended with. Here the exit status says what a single worker's would
(``components.runtime.launcher.worker``).
"""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from components.runtime.launcher.worker import REFUSED


def main() -> None:
    try:
        torchrun()
    except ChildFailedError as error:  # torchrun has printed it
        # When one rank refuses, the others fail too, and torchrun may see any of them first.
        codes = {failure.exitcode for failure in error.failures.values()}
        sys.exit(REFUSED if REFUSED in codes else 1)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))


if __name__ == "__main__":
    main()
