"""Reads GSM8K files (Cobbe et al. 2021): one JSON object a line with `question` and `answer`."""

import json
import re

from problems import Problem

CALCULATOR_MARK = re.compile(r"<<[^>]*>>")


def final_number(answer):
    """The text after the last `####`, without thousands separators; None when there is no such line."""
    head, mark, tail = answer.rpartition("####")
    words = tail.replace(",", "").replace("$", "").split()
    return words[0].rstrip(".") if mark and words else None


def read(path):
    with open(path) as lines:
        records = [json.loads(line) for line in lines]
    made = []
    for record in records:
        answer = CALCULATOR_MARK.sub("", record["answer"])
        made.append(Problem(record["question"].strip(), answer.strip(), final_number(answer), "gsm8k"))
    return made
