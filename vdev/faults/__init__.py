"""Fault injection: which failure comes when (`plan`), what there is to choose from (`actions`), and one file a point
that says what an action does there. Pure: `vdev.injector` connects it to a machine.

    rule.py       a rule: where, of which, when, what; its text checked and turned into data
    plan.py       rules in order, their counts, the verdict on one occurrence
    actions.py    the table of points and actions; reactions.py: what is seen to come of each
    point.py      what a point's hooks and the injector have to do with each other
    keeping.py    what points share that hold things; agenda.py: what is to happen later

    requests, invalidation, events_queue (of a unit); translation, dma (of an endpoint, by way of detours and
    translators); interrupts, registers (of any function); pasids: the hooks of a point each
    deeds, orders: what the free actions do, to a function and by others
"""
