"""Can it be used? Why was it refused?"""
