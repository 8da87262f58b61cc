"""Tools around a server: `bench` measures one, `stress` tests one. They speak HTTP to it, and share

http         the client's side of HTTP, as bytes and values
sse          server-sent events, likewise
connections  both of them on sockets, blocking and under asyncio
processes    a server process, from its start to its end
"""
