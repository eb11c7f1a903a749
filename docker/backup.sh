#!/bin/sh
# The old container's command for a backup now.
exec pgark backup "$@"
