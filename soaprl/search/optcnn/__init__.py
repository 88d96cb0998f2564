"""The dynamic program of OptCNN over sample, attribute and parameter degrees."""

from soaprl.search.optcnn.elimination import Minimum, minimize
from soaprl.search.optcnn.method import OptcnnPlan, plan_optcnn, search_optcnn
from soaprl.search.optcnn.space import OptcnnSettings

__all__ = ["Minimum", "OptcnnPlan", "OptcnnSettings", "minimize", "plan_optcnn", "search_optcnn"]
