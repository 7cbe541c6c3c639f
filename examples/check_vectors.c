/* Checks an Adam of your own against exact results, whatever language it is in. This one is in C.
 * Files of a form that it does not make, such as adam-efficient.json, are named and left out.
 *
 *     adamas check --vectors vectors
 *     cc -O2 -ffp-contract=off check_vectors.c -o check_vectors -lm
 *     ./check_vectors vectors/adam*.json                                                        */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The Adam to be checked: one element, one step. */
static void step(float *p, float *m, float *v, float g, int t, double lr, double b1, double b2,
                 double eps, double decay, int decoupled) {
    if (!decoupled) g += (float)decay * *p;
    *m = (float)b1 * *m + (float)(1 - b1) * g;
    *v = (float)b2 * *v + (float)(1 - b2) * g * g;
    float top = *m / (float)(1 - pow(b1, t));
    float bottom = sqrtf(*v) / (float)sqrt(1 - pow(b2, t)) + (float)eps;
    *p -= (float)lr * top / bottom + (decoupled ? (float)(lr * decay) * *p : 0);
}

/* What it makes, as the files name it; and of "decay" both "l2" and "decoupled". */
static const char *makes[][2] = {{"bias_correction", "paper"}, {"epsilon", "outside"},
    {"amsgrad", "no"}, {"nesterov", "no"}, {"rectified", "no"}, {"clipped", "no"},
    {"direction", "descent"}};

static char *after(char *text, const char *key) { /* the place behind a key */
    char quoted[40];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    char *found = strstr(text, quoted);
    if (!found) fprintf(stderr, "no %s: is this adamas-vectors/1?\n", quoted), exit(2);
    return found + strlen(quoted);
}

static double *numbers(char *text, const char *key, long count) { /* hexadecimal, in quotes */
    double *list = malloc(count * sizeof *list);
    char *at = after(text, key);
    for (long i = 0; i < count; i++) list[i] = strtod(strchr(at, '"') + 1, &at), at++;
    return list;
}

static int is(char *text, const char *key, const char *choice) { /* in quotes */
    char *value = strchr(after(text, key), '"') + 1;
    return !strncmp(value, choice, strlen(choice)) && value[strlen(choice)] == '"';
}

static const char *otherwise(char *text) { /* the key of what it does not make, or NULL */
    for (size_t i = 0; i < sizeof makes / sizeof *makes; i++)
        if (!is(text, makes[i][0], makes[i][1])) return makes[i][0];
    return is(text, "decay", "l2") || is(text, "decay", "decoupled") ? NULL : "decay";
}

static double check(char *text) { /* the largest distance, in units in the last place */
    long steps = strtol(after(text, "steps") + 1, NULL, 10);
    long size = strtol(after(text, "elements") + 1, NULL, 10);
    double b1 = *numbers(text, "beta1", 1), b2 = *numbers(text, "beta2", 1), worst = 0;
    double eps = *numbers(text, "eps", 1), decay = *numbers(text, "weight_decay", 1);
    double *lr = numbers(text, "rates", steps), *start = numbers(text, "start", size);
    double *g = numbers(text, "gradients", steps * size);
    double *exact = numbers(text, "parameters", steps * size);
    int decoupled = is(text, "decay", "decoupled");
    for (long i = 0; i < size; i++) {
        float p = (float)start[i], m = 0, v = 0, largest = fabsf(p);
        for (long t = 0; t < steps; t++) {
            double wanted = exact[t * size + i];
            step(&p, &m, &v, (float)g[t * size + i], t + 1, lr[t], b1, b2, eps, decay, decoupled);
            largest = fmaxf(largest, fabsf((float)wanted));
            worst = fmax(worst, fabs(p - wanted) / (nextafterf(largest, FLT_MAX) - largest));
        }
    }
    return worst;
}

int main(int count, char **paths) {
    int wrong = 0, checked = 0;
    for (int i = 1; i < count; i++) {
        static char text[1 << 24];
        FILE *file = fopen(paths[i], "rb");
        if (!file) return perror(paths[i]), 2;
        text[fread(text, 1, sizeof text - 1, file)] = 0, fclose(file);
        const char *key = otherwise(text);
        if (key) { printf("%s: another form (its %s): left out\n", paths[i], key); continue; }
        /* Twice as far as adamas is, and one unit more, is rounding. */
        double adamas = strtod(after(after(text, "ulp_of_adamas"), "float32") + 1, NULL);
        double off = check(text), most = 2 * adamas + 1;
        printf("%s: %.2f ulp, at most %.2f: %s\n", paths[i], off, most, off <= most ? "ok" : "NO");
        wrong |= !(off <= most), checked++;
    }
    if (!checked) return fprintf(stderr, "no file of a form that it makes\n"), 2;
    return wrong;
}
