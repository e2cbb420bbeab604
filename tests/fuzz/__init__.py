"""Files damaged at random, given to every command: ``python -m tests.fuzz --cases 10000``.

Every case is a function of the seed and its number. What may come out: exit code 0; 1 from
`verify`; 2 with one line; nothing written but the output; nothing that a terminal would obey; at
most five seconds of processor time and 500 MB.
"""
