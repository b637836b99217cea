"""Every line that touches a host; one module per host behind the protocol in `base`."""
