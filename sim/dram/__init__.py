"""DRAM channels: an event engine, request streams, a checker of command logs, traces as files."""
