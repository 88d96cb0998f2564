"""Part of soaprl."""
