"""Arrays of JAX on the cpu: ctest -C clients -L clients."""
from inside import NUMPY, enter_package

enter_package(__file__, NUMPY.replace("1.26.4", "2.1.3"), "jax[cpu]==0.7.2", name="python_jax")

import unittest  # noqa: E402

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tenon  # noqa: E402

from oracle import case, difference, inputs, spec  # noqa: E402


class Arrays(unittest.TestCase):
    def setUp(self):
        self.shape = case(5, 512, 1)
        communicator = tenon.Communicator.from_team(tenon.Team(1), 0, target="cpu")
        self.boundary = tenon.Boundary(communicator, max_rows=8, **spec(self.shape))
        self.partial, self.residual, self.weight = inputs(self.shape, 0)
        self.places = dict(zip(("rows", "codes", "scales"), self.boundary.outputs_like(self.residual)))

    def of_jax(self, bits):
        return jnp.asarray(bits).view(jnp.bfloat16)

    def test_are_read_to_the_bit(self):
        out = self.boundary(self.of_jax(self.partial), self.residual, self.of_jax(self.weight), **self.places)
        self.assertEqual(difference(self.shape, out), "")

    def test_types_that_extensions_of_numpy_name(self):
        bits = [array.view(jnp.bfloat16) for array in (self.partial, self.residual, self.weight)]
        places = dict(self.places, codes=self.places["codes"].view(jnp.float8_e4m3fn))
        self.assertEqual(difference(self.shape, self.boundary(*bits, **places)), "")

    def test_are_never_written(self):
        partial = self.of_jax(self.partial)
        for name in ("residual", "rows"):
            given = {"residual": self.residual, **self.places, name: self.of_jax(self.residual)}
            with self.assertRaisesRegex(tenon.InvalidArgumentError, f"{name} is a jax.*never changes; accepted"):
                self.boundary(partial, weight=self.weight, **given)

    def test_are_not_bound(self):
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "partial is an array of JAX, which never changes; accepted"):
            self.boundary.bind(self.of_jax(self.partial), self.residual, self.weight, **self.places)

    def test_outputs_are_not_made(self):
        with self.assertRaisesRegex(tenon.InvalidArgumentError, "beside an array of jax; accepted"):
            self.boundary(self.of_jax(self.partial), self.residual, self.weight)


class Numpy(unittest.TestCase):
    def test_two_is_taken_too(self):
        self.assertTrue(np.__version__.startswith("2."))


if __name__ == "__main__":
    unittest.main()
