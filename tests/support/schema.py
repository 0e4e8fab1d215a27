"""A schema with a little of everything, for tests of what is made from schemas."""

from __future__ import annotations

from vdev.qapi.schema import parse_schema

SMALL_TEXT = """
{ 'pragma': { 'prefix': '__org.example_' } }

##
# = Numbers
##

##
# @query-answer:
#
# The answer.
#
# Errors: none that is known
# Example: {}
##
{ 'command': 'query-answer', 'returns': 'int' }

##
# @query-since:
#
# Two numbers.
#
# @since: the first
# @from: the second, which has a name
#   that is a keyword
##
{ 'command': 'query-since', 'data': { '*since': 'int', '*from': 'uint32' }, 'returns': ['int'] }

##
# @query-never:
#
# Refused.
##
{ 'command': 'query-never' }

##
# = Others
##

##
# @follow:
#
# Lines follow.
##
{ 'command': 'follow', 'returns': 'str', 'features': ['control-only'] }

##
# @Colour:
#
# @red: like blood
# @blue: like water
##
{ 'enum': 'Colour', 'data': ['red', 'blue'] }

##
# @Part:
#
# @start: where
# @colour: which
# @more: what else
##
{ 'struct': 'Part', 'data': { 'start': 'uint64', '*colour': 'Colour', '*more': 'any' } }

##
# @plug:
#
# Plug.
#
# @name: whose
# @parts: of which parts
# @colours: in which colours
# @speed: how fast
# @loud: whether it makes a noise
# @small: below 2^32
##
{ 'command': 'plug',
  'data': { 'name': 'str', '*parts': ['Part'], '*colours': ['Colour'], '*speed': 'number', '*loud': 'bool',
            '*small': 'uint32' },
  'returns': 'Part', 'features': ['bridge-only'] }

##
# @PLUGGED:
#
# It is in.
#
# @name: whose
##
{ 'event': 'PLUGGED', 'data': { 'name': 'str' } }
"""

SMALL = parse_schema(SMALL_TEXT)
