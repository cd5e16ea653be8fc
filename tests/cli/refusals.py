"""What every refusal on the command line looks like."""


def refused(outcome, *fragments):
    """Exit code 2 and one line on stderr, in which each fragment stands."""
    assert outcome.code == 2, outcome
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("invsolve: error: "), outcome.err
    for fragment in fragments:
        assert fragment in lines[0], lines[0]
