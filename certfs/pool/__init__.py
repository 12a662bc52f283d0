"""One pool of many hosts: a certificate that is dropped on one is trusted on all (promise I22).

The only package that uses the network. It knows the engine (etcd) and the directories of certificates in a store;
nothing that serves a mount knows of it, and it nothing of them.
"""
