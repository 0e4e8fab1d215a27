"""Fault injection: which failure comes when (`plan`), what there is to choose from (`actions`), and one file a point
that says what an action does there. Pure: `vdev.injector` connects it to a machine.

    rule.py       a rule: where, of which, when, what; its text checked and turned into data
    plan.py       rules in order, their counts, the verdict on one occurrence
    actions.py    the table of points and actions
    point.py      what a point's hooks and the injector have to do with each other
"""
