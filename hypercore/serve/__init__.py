"""`hypercore serve`: the engine behind gRPC and HTTP, in one process.

daemon.py opens the sockets, grpc_server.py and http_server.py translate, service.py does what is
asked by calling the engine. Nothing here is needed to run a microVM: they live on without it.
"""
