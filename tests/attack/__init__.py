"""Attacks on whole commands: several writers, kills, full disks, damaged and hostile files. Part of `make test-all`."""
