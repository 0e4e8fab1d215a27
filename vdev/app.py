"""The composition root: the only file that knows every layer. Config in, a serving process out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from vdev.config import Config, EndpointConfig, Reserved, UnitConfig, parse_bdf, parse_size
from vdev.control.event_log import EventLog
from vdev.control.messages import NoArguments, QueryEvents, Ready
from vdev.control.server import Command, ControlServer
from vdev.endpoints.table import MODELS
from vdev.errors import ConfigError
