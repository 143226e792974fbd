"""record.py: writes files.json, which says what python-dotenv, the bridge's reader of .env, makes of each of these files.

To run it again after a change of the list:
    python3 -m venv VENV && VENV/bin/pip install 'python-dotenv==1.0.1' && VENV/bin/python tests/dotenv/record.py
The unit tests of shared read files.json; they don't need python-dotenv.
"""

import importlib.metadata
import json
import logging
import os
import random
import sys
import tempfile
from pathlib import Path

from dotenv.main import DotEnv
from dotenv.parser import parse_stream

# Set before the file is read.
ENVIRONMENT = {"SET": "from the environment", "BLANK": "", "HOST_NAME": "db1"}

FILES = [
    # As the bridge's users have it.
    "# MongoDB\nMONGO_URI=mongodb://u:p$word@h/?a=b&c=d\nDB_NAME='faster'\nVIP_DB_NAME=\"vip\"   # the other one\n",
    "export WEBHOOK_WORKERS=4\nTEST_MODE=true\nSOME_TEXT=two words\n",
    # Ends of lines.
    "",
    "\n",
    "A=1",
    "A=1\n",
    "A=1\r\nB=2\r\n",
    "A=1\rB=2\r",
    "A=1\n\r\nB=2",
    "A='1\r\n2'\r\nB=\"3\r4\"",
    "\n\n\n  A=1",
    "A=1\n\n\n",
    "\x0bA=1\x0bB=2",
    "A=1\x0cB=2\x85C=3\u2028D=4",
    "\ufeffA=1\nB=2",
    "\ufeff# comment\nA=1",
    # Blanks.
    " A = 1 ",
    "\tA\t=\t1\t",
    "A= 1",
    "A =1",
    "A=\u00a01\u00a0",
    "A=\u20031\u2003\nB=2",
    "A=\x1c1\x1f",
    "A=1 2  3 ",
    "A=' 1 '",
    'A=" 1 "',
    "A=   ",
    "A=\nB=2",
    "A=\n2",
    "A=  \n  B=2",
    # Comments.
    "#A=1",
    "  # A=1\nB=2",
    "A=1#2",
    "A=1 #2",
    "A=1\t#2",
    "A=1 # 2 # 3",
    "A=#1",
    "A= # 1",
    "A=  #1",
    "A='1'#2",
    "A='1' #2",
    "A='1 # 2' # 3",
    'A="1 # 2"# 3',
    "A=1 #",
    "A #2",
    "A#2",
    "A#=2",
    "A=1\u00a0#2",
    "A # '\nB=2",
    # Names.
    "A",
    "A\nB=2",
    "A=1\nA",
    "A\nA=1",
    "A=1\nA=2",
    "A=1\nA=",
    "=1",
    "=1\nB=2",
    "'A'=1",
    "'A B'=1",
    "'A=B'=1",
    "''=1\nB=2",
    "'A=1\nB=2",
    "'A\nC'=1",
    '"A"=1',
    "A.B-C=1",
    "A B=1\nC=2",
    "A B\nC=2",
    "1=1",
    "\u00c4=1",
    "A:1\nB=2",
    "A==1",
    "A=b=c",
    # Export.
    "export A=1",
    "export  A = 1",
    "export\tA=1",
    "export\nA=1",
    "export=1",
    "export A",
    "export ",
    "export \nA=1",
    "exportA=1",
    "export export A=1",
    "export 'A'=1",
    "export # A=1",
    "export #\nB=1",
    "export\u00a0A=1",
    "EXPORT A=1",
    # Quotes.
    "A=''",
    'A=""',
    "A=''\nB=\"\"",
    "A='1'",
    'A="1"',
    "A='1",
    "A='1\nB=2",
    "A='1\nB='2'",
    "A='1\nB=2'\nC=3",
    'A="1\nB=2',
    'A="1\nB="2"\nC=3',
    "A=1'",
    "A=1'2'",
    'A=it"s',
    "A=it's # so",
    "A='1' 2\nB=2",
    "A='1'2\nB=2",
    'A="1" "2"\nB=2',
    "A='1\n2\n3'\nB=2",
    'A="1\n2"\nB=2',
    "A='it\"s'",
    'A="it\'s"',
    "A='1\n2' 3\nB=2",
    "A= '1'",
    "A='1'  ",
    "A=`1`",
    # Backslashes.
    r"A=1\n2",
    r"A='1\n2'",
    r'A="1\n2"',
    r'A="\a\b\f\n\r\t\v"',
    r"A='\a\b\f\n\r\t\v'",
    r'A="\\"',
    r"A='\\'",
    r"A='\\\\n'",
    r'A="\\n"',
    r'A="\\\n"',
    r"A='it\'s'",
    r'A="it\"s"',
    r'A="it\'s"',
    r"A='it\"s'",
    "A='1\\'",
    "A='1\\'\nB=2",
    "A='1\\'\nB='2'",
    "A='1\\'2\\'\nB=2",
    "A='1\\'2\\' # 3\nB=2",
    'A="1\\"\nB=2',
    'A="1\\"2\\"\nB=3',
    'A="1\\"\nB="2"',
    "A='1\\\\'",
    "A='1\\\\' # 2\nB=2",
    'A="1\\\\"\nB=2',
    r'A="\x41\u0041\101\d"',
    "A=\\\nB=2",
    'A="1\\\n2"',
    r"A=\'1\'",
    r'A="\$B"',
    # References.
    "A=${SET}",
    "A=$SET",
    "A=${SET}:${NONE}:${SET}",
    "A=${NONE}",
    "A=${NONE:-default}",
    "A=${NONE:-}",
    "A=${SET:-default}",
    "A=${BLANK:-default}",
    "A=${BLANK}",
    "A=${NONE-default}",
    "A=${NONE:default}",
    "A=${NONE:?default}",
    "A=${NONE:-a:-b}",
    "A=${NONE:-${SET}}",
    "A=${${SET}}",
    "A=${SET",
    "A=${",
    "A=${}",
    "A=${:-d}",
    "A=$${SET}",
    "A=\\${SET}",
    "A='${SET}'",
    'A="${SET}"',
    "A='${NONE:-a b}'",
    "A=${NONE:-a #b}",
    "A=${NONE:-'b'}",
    "A=1\nB=${A}",
    "A=1\nB=${A}2\nC=${B}3",
    "B=${A}\nA=1",
    "A=\nB=${A:-default}",
    "A\nB=${A:-default}",
    "A=1\nA\nB=${A:-default}",
    "SET=file\nB=${SET}",
    "SET\nB=${SET:-default}",
    "SET=file\nSET=again\nB=${SET}",
    "A=a${HOST_NAME}\nA=${A}b",
    "A=${ SET }",
    "A=${HOST_NAME}:${PORT:-27017}/${NONE}",
    "A=x${a:b${SET}y",
    "A=${a:b}${SET}",
    "A=${NONE:-a${SET}",
    # What can't be understood.
    "what is this\nB=2",
    "A=1\n???\nB=2",
    "= \nB=2",
    "[section]\nB=2",
    "A: 1\nB=2",
    "set A=1\nB=2",
    "'\nB=2",
    '"\nB=2',
    "A='1'\"\nB='2'",
    "A='1' B='2'\nC=3",
]
# From these the others are made, at random but always the same.
PIECES = ["A", "B", "SET", "=", "=", "=", " ", " ", "\n", "\n", "'", "'", '"', '"', "\\", "#", " #", "${", "}", ":-"]
PIECES += ["export ", "x", "\\n", "\\'", '\\"', "\t", "\r\n", "${SET}", "${A}", "$", "\u00e9", "\u00a0"]


def random_files(count):
    chosen = random.Random(7)
    return ["".join(chosen.choices(PIECES, k=chosen.randint(2, 24))) for _ in range(count)]


def recorded(text):
    """What load_dotenv would add to the environment, where that hasn't set it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, ".env")
        path.write_bytes(text.encode())
        read = DotEnv(path, override=False, encoding="utf-8").dict()
        with path.open(encoding="utf-8") as stream:
            ignored = sum(statement.error for statement in parse_stream(stream))
    return {
        "environment": ENVIRONMENT,
        "text": text,
        "variables": {name: value for name, value in read.items() if value is not None},
        "ignored": ignored,
    }


def main():
    logging.disable()
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    files = FILES + random_files(600)
    lines = ",\n".join(json.dumps(recorded(text), ensure_ascii=True) for text in files)
    Path(__file__).with_name("files.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(files)} files, python-dotenv {importlib.metadata.version('python-dotenv')}", file=sys.stderr)


if __name__ == "__main__":
    main()
