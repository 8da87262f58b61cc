"""The core: pure and synchronous. No event loop, no socket, no disk, no clock."""
