"""What `jouleproxy calibrate` is made of.

server.py      the engine: who it is, whether it is quiet, what its counters say
timetable.py   which kinds of work run, how large, how long and in which order
load.py        sends the requests and notes their tokens
energy.py      reads the meters beside it
measuring.py   one stretch of one kind of work, as work and energy
summary.py     what came out, for people
"""
