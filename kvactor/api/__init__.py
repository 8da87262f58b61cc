"""The JSON of the HTTP API as msgspec structs: server, client, tools and OpenAPI share them.

The rule: nothing here knows HTTP or the web framework. A type says what is on the wire; where a core
message or record has the same meaning, the conversion stands beside the type.
"""
