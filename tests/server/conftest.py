"""Fixtures for the tests of servers."""

from support.quick_registries import quick_registries as quick_registries
