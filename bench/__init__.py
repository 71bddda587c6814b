"""One file per benchmark, all of one shape. `make bench` lists them, `make bench NAME=decode` runs one.

shape.py      ceiling, warm-up, alternate rounds, medians, goals, the result file
machine.py    what the figures were measured on
ceiling.py    what the machine could do at best, and what a step of a model asks of it
reference.py  transformers on the same checkpoint
"""
