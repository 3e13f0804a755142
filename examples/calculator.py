"""A tool for rollouts of several turns: a calculator that finishes what the model begins.

    srft-ray train examples/calculator.yaml

A turn ends when the model has written `88 * 40 = `; the calculator adds `3520`, and the model goes on. What
the calculator wrote is context, and no part of the loss.
"""

import re

UNFINISHED = re.compile(r"(?:^|\n)((?:-?\d{1,9} [-+*] )+-?\d{1,9}) = $")


def calculate(response, reference, metadata):
    """The value of the unfinished line that ends the response; nothing where it is no sum or product."""
    found = UNFINISHED.search(response)
    if not found:
        return ""
    words = found[1].split(" ")
    # A product binds closer than a sum: "2 + 3 * 4" is the sum of [2, 12].
    summands = [int(words[0])]
    for sign, word in zip(words[1::2], words[2::2], strict=True):
        if sign == "*":
            summands[-1] *= int(word)
        else:
            summands.append(int(word) if sign == "+" else -int(word))
    return str(sum(summands))
