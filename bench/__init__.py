"""What Syros costs and what it gives, measured beside etcd: `make bench`, or `python -m bench --help`."""
