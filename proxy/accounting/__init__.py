"""What a joule per request is. Pure: no clock, no I/O, no asyncio.

The law, for every window between two accepted readings of a meter, in whole microjoules:

    requests + idle + unattributed + unmeasured == energy of the window
"""
