"""Models by name. A frozen dataclass for each: its fields are what a config may say, `build` makes
the model.

This room imports none of them.
"""

from ..catalog import Named

MODELS = Named(
    __name__,
    {
        "adapted-clip": "prompted:AdaptedClipSettings",
        "prompted-clip": "prompted:PromptedClipSettings",
        "prompted-dual": "prompted:PromptedDualSettings",
        "linear-probe": "prompted:LinearProbeSettings",
        "compact-cnn": "vision:CompactCnnSettings",
        "family": "family:FamilySettings",
        "leaf-cnn": "vision:LeafCnnSettings",
        "resnet18": "vision:ResNet18Settings",
        "transformer": "sequence:TransformerSettings",
        "sentence-network": "sequence:SentenceNetworkSettings",
    },
)
