"""Pictures of what the commands print: runs those of the tutorials in a new folder and writes docs/pictures/.

python docs/pictures.py FOLDER         some ten minutes on two cores; the environment's `zoo` has to be on the PATH
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).resolve().parent / "pictures"
TUTORIALS = PICTURES.with_name("tutorials")
WIDTH, MOST_LINES = 96, 60  # columns and lines of a picture; of longer outputs the end is shown
RUN = "runs/mine/faster_rcnn_mobilenetv2_seed0"

# Further commands, beside those of the tutorials, in the order in which they can run.
FURTHER = (
    f"zoo validate --checkpoint {RUN} --data data/mine",
    f"zoo evaluate --predictions {RUN}/predictions.json --data data/mine",
    "zoo anchors data/mine --model yolov3_mobilenetv2",
    "zoo proposals --model fast_rcnn --data data/mine",
    "zoo split data/mine --out data/parts --fractions .7 .15 .15",
)


def main() -> int:
    """Run the commands and draw the first output of each verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder, in which the commands run")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True)
    made = folder / "pictures"
    made.mkdir()
    for page in ("your-images.md", "fine-tuning.md"):
        text = (TUTORIALS / page).read_text()
        for language, block in re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL):
            if language == "python":
                subprocess.run([sys.executable, "-c", block], cwd=folder, check=True)
            else:
                for command in block.replace("\\\n", "").splitlines():
                    if command.startswith("zoo "):
                        record(command, folder, made)
    for command in FURTHER:
        record(command, folder, made)
    found = sorted((folder / "runs" / "found" / "annotated").iterdir())
    shutil.copy(found[3], made / "found.jpg")
    shutil.rmtree(PICTURES, ignore_errors=True)
    shutil.copytree(made, PICTURES)
    return 0


def record(command: str, folder: Path, made: Path) -> None:
    """Run a command, and draw what it prints if no command of its verb has been drawn yet."""
    command = re.sub(r" +", " ", command)
    environment = os.environ | {"COLUMNS": str(WIDTH)}
    print(command, flush=True)
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    picture = made / f"{command.split()[1]}.svg"
    text = (done.stderr + done.stdout).replace(f"{PICTURES.parents[1]}/", "").replace(f"{folder}/", "")
    lines = text.rstrip().splitlines()
    if not picture.exists() and lines:
        draw(lines[-MOST_LINES:], command, picture)


def draw(lines: list[str], title: str, picture: Path) -> None:
    """Lines as a picture of a terminal, which loads no font from a network."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text("\n".join(lines)))
    console.save_svg(str(picture), title=title)
    picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    sys.exit(main())
