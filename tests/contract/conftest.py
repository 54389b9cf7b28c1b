"""Fixtures for the tests of the contracts."""

from support.quick_registries import quick_registries as quick_registries
