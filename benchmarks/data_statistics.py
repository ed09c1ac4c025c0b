"""Time of `zoo stats` and of hotcoco's statistics on a file like COCO's instances_train2017.json.

    python benchmarks/data_statistics.py [--annotations FILE] [--rounds 3] [--out FILE]

The file has 118,287 images and 860,001 boxes with polygons, about 440 MB; without --annotations it is made first. Each
side is a new process that imports its packages, reads the file and computes statistics. hotcoco counts boxes by class
and takes the median of sizes; `zoo stats` also computes overlaps of all pairs, quantiles and positions.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import Report, spread, time_in_turn
from data_loading import make_json

OURS = "import sys; from zoo.cli.main import main; main(['stats', sys.argv[1]])"
PEER = "import sys; import hotcoco; hotcoco.COCO(sys.argv[1]).stats()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.annotations or Path(folder, "instances_train2017.json")
        if arguments.annotations is None:
            make_json(file)

        def run(script: str) -> None:
            subprocess.run([sys.executable, "-c", script, str(file)], check=True, capture_output=True)

        command = f"python benchmarks/data_statistics.py --rounds {arguments.rounds}"
        report = Report("Statistics of a COCO-sized file", command, ("side", "seconds"))
        timing = time_in_turn(lambda: run(OURS), lambda: run(PEER), arguments.rounds, "cpu")
        report.row(["zoo stats", spread(timing.ours)])
        report.row(["hotcoco, counts only", spread(timing.peer)])
        ours, peer = sorted(timing.ours), sorted(timing.peer)
        middle = arguments.rounds // 2
        report.case("data_statistics/coco_train", ours[middle], peer[middle], "hotcoco stats", "s", timing.ratio)
        report.finish(arguments.out)


if __name__ == "__main__":
    main()
