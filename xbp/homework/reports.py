"""What was found of some answers: as text, JSON, and JUnit's XML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from xbp.homework.checking import Answer
from xbp.homework.hints import KINDS


def as_text(answers: Sequence[Answer]) -> Iterator[str]:
    """Lines for the student."""
    for answer in answers:
        done = len(answer.passed)
        verdict = (
            "right" if answer.right else f"{done} of {done + len(answer.hints)} parts are right"
        )
        yield f"{answer.exercise} ({answer.file}): {verdict}"
        yield from (f"  ✓ {name}" for name in answer.passed)
        yield from (f"  ✗ {hint}" for hint in answer.hints)


def as_json(answers: Sequence[Answer]) -> str:
    """For the teacher's programs: every answer, and how often each kind of fault was found."""
    hints = [hint.kind for answer in answers for hint in answer.hints]
    counted = {kind: hints.count(kind) for kind in KINDS if kind in hints}
    right = sum(answer.right for answer in answers)
    whole = {
        "format": "xbp homework 1",
        "right": right,
        "answers": [answer.as_dict() for answer in answers],
        "kinds": counted,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def as_junit(answers: Sequence[Answer]) -> str:
    """For a forge: a test case for each part, a failure for each hint."""
    suites = ElementTree.Element("testsuites")
    for answer in answers:
        total, failures = len(answer.passed) + len(answer.hints), len(answer.hints)
        numbers = {"tests": str(total), "failures": str(failures)}
        suite = ElementTree.SubElement(suites, "testsuite", {"name": answer.exercise, **numbers})
        about = {"classname": answer.exercise, "file": answer.file}
        for name in answer.passed:
            ElementTree.SubElement(suite, "testcase", {"name": name, **about})
        for hint in answer.hints:
            case = ElementTree.SubElement(suite, "testcase", {"name": hint.quantity, **about})
            said = {"type": hint.kind, "message": str(hint)}
            failed = ElementTree.SubElement(case, "failure", said)
            failed.text = KINDS[hint.kind]
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
