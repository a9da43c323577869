"""Child process of `text_columns`: reads one column of text and may hang or die of it.

    python -P text_reader.py FILE DATASET swmr|plain

Prints {"rows": [...]} or {"error": "..."}; bytes that are no UTF-8 become lone surrogates.
"""

import json
import sys

import h5py
import hdf5plugin  # noqa: F401  a column of text may be compressed, too


def main() -> None:
    """Reads the column that the arguments name."""
    path, name, mode = sys.argv[1:]
    answer: dict[str, object]
    try:
        with h5py.File(path, "r", locking=False, swmr=mode == "swmr") as file:
            rows = file[name][()].tolist()
        answer = {"rows": [row.decode("utf-8", "surrogateescape") for row in rows]}
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "it asks for too much memory"}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
