"""Schedules: what moves when, as rounds; `schedule` defines them, `prove` proves them, `account` counts them."""
